"""The commands that work on rows: what they read, which parts they bring up, what they leave."""
