"""What the numbers mean: readers of the registry for the page, the API and the terminal."""
