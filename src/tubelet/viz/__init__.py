"""Pictures of clips, masks, reconstructions and curves. Pillow only."""
