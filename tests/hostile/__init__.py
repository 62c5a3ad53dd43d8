"""Inputs of strangers, through the command line: every one is refused in one message or taken for what it is, in little time and memory."""
