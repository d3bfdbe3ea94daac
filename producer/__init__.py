"""How a request enters: a producer for asyncio, and one for any thread."""
