"""Who is near, and who would rather not be seen."""
