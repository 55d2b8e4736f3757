"""Language models: whom to ask (config, providers), how to say it (dialects), what comes back (messages), asking (client)."""
