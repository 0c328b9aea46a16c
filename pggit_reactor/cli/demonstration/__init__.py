"""What `pggit-reactor demo` is made of: a stage (database, receiver, worker), a story, and a page to tell it on."""
