"""The three uses as Prefect flows: decorators, order, runners, retries and artifacts; the work itself is in `ip2p`."""
