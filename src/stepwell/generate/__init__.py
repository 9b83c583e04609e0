"""From a prompt to tokens: requests, addressed noise, sampling, and the engine that runs them."""
