"""What `mindgw quickstart` brings along when a machine has no engine: llama.cpp and a tiny model that only babbles."""
