"""The commands. They parse the command line, print what will happen, and call other packages to do the work."""

from flexlora.cli.interrupt import leave_while_importing

leave_while_importing()
