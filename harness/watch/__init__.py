"""What a method did, counted by the harness, and whether what it says of itself is so."""
