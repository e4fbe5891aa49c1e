"""One program for each table or figure of the documents."""
