"""The command line of memsys; nothing here is imported by `import memsys`."""
