"""Tables in object storage, against a real S3 server."""
