pytest_plugins = ["tests.support.servers", "tests.support.services", "tests.support.stack"]
