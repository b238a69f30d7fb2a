"""What every room uses: errors, names, files, what a machine is, what code is. Imports no other room."""
