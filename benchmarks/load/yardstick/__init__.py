"""The field's usual ways to end sessions on time, in a few lines each, for comparison."""
