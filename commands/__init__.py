"""The command line's commands: what it adds to LightningCLI, where a run's files go, evaluate and export."""
