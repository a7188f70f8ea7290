"""The pool over HTTP: OpenAI's embeddings interface, and text-embeddings-inference's."""
