"""What an adapter is: its files, formats, and whether it fits a base. No torch."""
