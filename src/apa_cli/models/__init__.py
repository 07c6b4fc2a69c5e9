"""Loading models and deciding which weights play which role."""
