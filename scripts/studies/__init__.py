"""What measure_methods.py measures: one module a study."""
