"""The command line: builds, serves, asks and generates. Starts Triton and the OpenAI proxy."""
