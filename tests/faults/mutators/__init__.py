"""Ways to spoil a good history, in a module for each part of the checker."""
