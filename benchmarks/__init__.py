"""What is measured beside the tests: speed, and a judge of samples."""
