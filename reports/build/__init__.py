"""What turns records into tables, figures and pages."""
