"""The kit for tests of pipelines, receivers and the reactor itself."""
