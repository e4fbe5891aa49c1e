"""What stands on codecs: the command line, clients and servers."""
