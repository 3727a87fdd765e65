"""A model behind an address: an API after OpenAI's, and a page to talk to it."""
