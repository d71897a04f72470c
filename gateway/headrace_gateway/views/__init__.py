"""From stored records to what users see; reads only."""
