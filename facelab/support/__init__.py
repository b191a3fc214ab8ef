"""What every room leans on: named errors, files that are written whole, other people's files, printing."""
