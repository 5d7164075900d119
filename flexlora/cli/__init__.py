"""The commands: parse, say what will happen, call down. No logic of their own."""

from flexlora.cli.interrupt import leave_while_importing

leave_while_importing()
