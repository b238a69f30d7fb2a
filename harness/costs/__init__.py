"""What a step costs on a machine, part by part, and what it could cost at best."""
