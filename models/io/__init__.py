"""Ground for all: files, images, errors of users."""
