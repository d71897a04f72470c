"""Access to Redis: client, key names, scripts, JSON records, and the durability of writes."""
