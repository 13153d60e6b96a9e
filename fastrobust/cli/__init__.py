"""The command line: ``fastrobust demo | train | attack | doctor``."""
