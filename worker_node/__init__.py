"""How a request is carried out: node, dispatcher, pool and bridge processes."""
