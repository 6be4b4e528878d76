"""What users would take instead, measured in the same run: see the README one folder up."""
