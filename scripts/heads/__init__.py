"""What trains an EAGLE-3 head for a target."""
