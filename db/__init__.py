"""What must not be lost: PostgreSQL statements, the Redis queue, blobs and logs."""
