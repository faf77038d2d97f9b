"""A small mutation tester: breaks the product in listed ways and names what no unit test notices."""
