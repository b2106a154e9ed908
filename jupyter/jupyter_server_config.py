"""How `make lab` starts JupyterLab, beside your own settings."""

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class PromptConnection(ZMQChannelsWebsocketConnection):
    """Sends each message to the browser at once.

    As it comes, TCP keeps a small message back until the one before is acknowledged (Nagle's
    algorithm): a picture of the sliders then waits for some 30 milliseconds.
    """

    def connect(self):
        self.websocket_handler.set_nodelay(True)
        return super().connect()


c = get_config()  # noqa: F821
c.ServerApp.kernel_websocket_connection_class = PromptConnection
c.ServerApp.allow_root = True
