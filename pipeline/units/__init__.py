"""What can go: units, plans, masking, surgery, counting. Imports nothing of ours."""
