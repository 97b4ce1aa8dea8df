"""What training cost: run folders in memory, where a model came from, what growing it saved."""
