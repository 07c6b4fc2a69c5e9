"""The parts of scripts/bench.py. Nothing else imports from here."""
