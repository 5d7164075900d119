"""The commands: parse, say what will happen, call down. No logic of their own."""
