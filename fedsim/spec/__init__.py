"""The experiment file: its blocks, its rules and how it is read; nothing of what it describes."""
