"""The parts of the report: `read` reads the run folders, `compare` and `tables` make the numbers, `page` shows them."""
