"""`python -m pipeline.cli`: the command `espalier` where the project is not installed."""

from pipeline.cli.main import espalier

espalier(prog_name="espalier")
