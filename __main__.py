from infra.stack import deploy

deploy()
