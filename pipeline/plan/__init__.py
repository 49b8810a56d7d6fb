"""Before any pixel is read: area, grid, catalogue, selection, estimates; pure but for the catalogue."""
