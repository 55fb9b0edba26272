"""Well-known services: name, hosts, category and what some of their operations are called. Data only.

A host may have the beginning of a path behind it, where one host has several services.
"""

from __future__ import annotations

__all__ = ["PEERS"]

_STRIPE = {
    "POST /v1/charges": "create_charge",
    "POST /v1/payment_intents": "create_payment_intent",
    "GET /v1/payment_intents/{id}": "get_payment_intent",
    "POST /v1/payment_intents/{id}/confirm": "confirm_payment_intent",
    "POST /v1/payment_intents/{id}/capture": "capture_payment_intent",
    "POST /v1/customers": "create_customer",
    "GET /v1/customers/{id}": "get_customer",
    "POST /v1/customers/{id}": "update_customer",
    "POST /v1/subscriptions": "create_subscription",
    "GET /v1/subscriptions/{id}": "get_subscription",
    "DELETE /v1/subscriptions/{id}": "cancel_subscription",
    "POST /v1/checkout/sessions": "create_checkout_session",
    "GET /v1/checkout/sessions/{id}": "get_checkout_session",
    "POST /v1/refunds": "create_refund",
    "GET /v1/invoices/{id}": "get_invoice",
}
_BEEHIIV = {
    "POST /v2/publications/{publication}/subscriptions": "create_subscription",
    "GET /v2/publications/{publication}/subscriptions": "list_subscriptions",
    "GET /v2/publications/{publication}/subscriptions/{id}": "get_subscription",
    "PUT /v2/publications/{publication}/subscriptions/{id}": "update_subscription",
    "DELETE /v2/publications/{publication}/subscriptions/{id}": "delete_subscription",
    "GET /v2/publications/{publication}/subscriptions/by_email/{email}": "get_subscription_by_email",
    "GET /v2/publications/{publication}/posts": "list_posts",
    "GET /v2/publications/{publication}/posts/{id}": "get_post",
}
_CLOUDFLARE = {
    "POST /client/v4/zones/{zone}/purge_cache": "purge_cache",
    "GET /client/v4/zones": "list_zones",
    "GET /client/v4/zones/{zone}": "get_zone",
    "GET /client/v4/zones/{zone}/dns_records": "list_dns_records",
    "POST /client/v4/zones/{zone}/dns_records": "create_dns_record",
    "POST /client/v4/graphql": "graphql",
    "GET /client/v4/accounts/{account}/storage/kv/namespaces/{namespace}/values/{key}": "kv_get",
    "PUT /client/v4/accounts/{account}/storage/kv/namespaces/{namespace}/values/{key}": "kv_put",
}
_OPENAI = {
    "POST /v1/chat/completions": "chat",
    "POST /v1/responses": "create_response",
    "GET /v1/responses/{id}": "get_response",
    "POST /v1/embeddings": "embeddings",
    "POST /v1/moderations": "moderation",
    "POST /v1/images/generations": "generate_image",
    "POST /v1/audio/transcriptions": "transcribe",
    "POST /v1/audio/speech": "speech",
    "GET /v1/models": "list_models",
    "POST /v1/files": "upload_file",
    "POST /v1/batches": "create_batch",
}
_ANTHROPIC = {
    "POST /v1/messages": "create_message",
    "POST /v1/messages/count_tokens": "count_tokens",
    "POST /v1/messages/batches": "create_batch",
    "GET /v1/messages/batches/{id}": "get_batch",
    "GET /v1/models": "list_models",
}
_GEMINI = {
    "POST /v1beta/models/{model}:generateContent": "generate_content",
    "POST /v1beta/models/{model}:streamGenerateContent": "stream_content",
    "POST /v1beta/models/{model}:embedContent": "embed_content",
}
_SENDGRID = {
    "POST /v3/mail/send": "send_mail",
    "PUT /v3/marketing/contacts": "update_contacts",
    "POST /v3/validations/email": "validate_email",
}
_TWILIO = {
    "POST /2010-04-01/Accounts/{account}/Messages.json": "send_message",
    "GET /2010-04-01/Accounts/{account}/Messages/{id}.json": "get_message",
    "POST /2010-04-01/Accounts/{account}/Calls.json": "create_call",
    "POST /v2/Services/{service}/Verifications": "start_verification",
    "POST /v2/Services/{service}/VerificationCheck": "check_verification",
}
_SLACK = {
    "POST /api/chat.postMessage": "post_message",
    "POST /api/chat.update": "update_message",
    "POST /api/views.open": "open_view",
    "POST /services/{team}/{hook}/{token}": "webhook",
    "/services/{team}/{hook}/{token}/*": "webhook",
    "/workflows/{team}/{app}/{id}/{token}/*": "workflow",
    "/triggers/{team}/{id}/{token}/*": "workflow",
    "/api/{method}": "api",
}
_GITHUB = {
    "GET /repos/{owner}/{repo}": "get_repository",
    "GET /repos/{owner}/{repo}/issues": "list_issues",
    "POST /repos/{owner}/{repo}/issues": "create_issue",
    "GET /repos/{owner}/{repo}/pulls": "list_pull_requests",
    "POST /repos/{owner}/{repo}/dispatches": "dispatch",
    "GET /user": "get_user",
    "POST /graphql": "graphql",
}
_FCM = {
    "POST /v1/projects/{project}/messages:send": "send",
    "POST /fcm/send": "send_legacy",
    "POST /batch": "send_batch",
}
_IDENTITY = {
    "POST /v1/accounts:lookup": "lookup",
    "POST /v1/accounts:signInWithPassword": "sign_in",
    "POST /v1/accounts:signUp": "sign_up",
    "POST /v1/accounts:update": "update",
    "POST /v1/token": "refresh_token",
}
_FIRESTORE = {
    "POST /v1/projects/{project}/databases/{database}/documents:runQuery": "query",
    "POST /v1/projects/{project}/databases/{database}/documents:commit": "commit",
    "POST /v1/projects/{project}/databases/{database}/documents:batchGet": "batch_get",
}
_STORAGE = {
    "GET /storage/v1/b/{bucket}/o": "list_objects",
    "GET /storage/v1/b/{bucket}/o/{object}": "get_object",
    "GET /download/storage/v1/b/{bucket}/o/{object}": "download",
    "POST /upload/storage/v1/b/{bucket}/o": "upload",
}
_PAYPAL = {
    "POST /v1/oauth2/token": "token",
    "POST /v2/checkout/orders": "create_order",
    "GET /v2/checkout/orders/{id}": "get_order",
    "POST /v2/checkout/orders/{id}/capture": "capture_order",
}
_MAILGUN = {"POST /v3/{domain}/messages": "send_mail", "GET /v3/{domain}/events": "list_events"}
_RESEND = {"POST /emails": "send_mail", "POST /emails/batch": "send_batch", "GET /emails/{id}": "get_mail"}
_POSTMARK = {"POST /email": "send_mail", "POST /email/batch": "send_batch"}
_TELEGRAM = {"POST /{bot}/sendMessage": "send_message", "/{bot}/{method}": "api", "/file/{bot}/*": "file"}
_DISCORD = {
    "POST /api/webhooks/{id}/{token}": "webhook",
    "/api/webhooks/{id}/{token}/*": "webhook",
    "/api/{version}/webhooks/{id}/{token}/*": "webhook",
}
_APNS = {"POST /3/device/{token}": "send"}

PEERS: tuple[tuple[str, tuple[str, ...], str, dict[str, str]], ...] = (
    ("stripe", ("api.stripe.com", "*.stripe.com"), "payments", _STRIPE),
    ("paypal", ("api-m.paypal.com", "*.paypal.com"), "payments", _PAYPAL),
    ("adyen", ("*.adyen.com", "*.adyenpayments.com"), "payments", {}),
    ("beehiiv", ("api.beehiiv.com", "*.beehiiv.com"), "newsletter", _BEEHIIV),
    ("mailchimp", ("*.api.mailchimp.com",), "newsletter", {}),
    ("cloudflare", ("api.cloudflare.com", "*.cloudflare.com"), "cdn", _CLOUDFLARE),
    ("cloudflare_r2", ("*.r2.cloudflarestorage.com",), "storage", {}),
    ("fastly", ("api.fastly.com",), "cdn", {}),
    ("openai", ("api.openai.com", "*.openai.com"), "ai", _OPENAI),
    ("azure_openai", ("*.openai.azure.com",), "ai", {}),
    ("anthropic", ("api.anthropic.com", "*.anthropic.com"), "ai", _ANTHROPIC),
    ("gemini", ("generativelanguage.googleapis.com",), "ai", _GEMINI),
    ("vertex_ai", ("*-aiplatform.googleapis.com",), "ai", {}),
    ("mistral", ("api.mistral.ai",), "ai", {"POST /v1/chat/completions": "chat", "POST /v1/embeddings": "embeddings"}),
    ("sendgrid", ("api.sendgrid.com", "*.sendgrid.com"), "email", _SENDGRID),
    ("mailgun", ("*.mailgun.net",), "email", _MAILGUN),
    ("resend", ("api.resend.com",), "email", _RESEND),
    ("postmark", ("api.postmarkapp.com",), "email", _POSTMARK),
    ("twilio", ("api.twilio.com", "*.twilio.com"), "messaging", _TWILIO),
    ("slack", ("slack.com", "*.slack.com"), "messaging", _SLACK),
    ("discord", ("discord.com", "*.discord.com", "discordapp.com"), "messaging", _DISCORD),
    ("telegram", ("api.telegram.org",), "messaging", _TELEGRAM),
    ("fcm", ("fcm.googleapis.com",), "notifications", _FCM),
    ("apns", ("api.push.apple.com", "api.sandbox.push.apple.com"), "notifications", _APNS),
    ("github", ("api.github.com", "*.github.com", "github.com"), "developer", _GITHUB),
    ("gitlab", ("gitlab.com",), "developer", {}),
    ("google_identity", ("identitytoolkit.googleapis.com", "securetoken.googleapis.com"), "auth", _IDENTITY),
    ("google_oauth", ("oauth2.googleapis.com", "accounts.google.com"), "auth", {"POST /token": "token"}),
    ("auth0", ("*.auth0.com",), "auth", {"POST /oauth/token": "token", "GET /userinfo": "userinfo"}),
    ("firestore", ("firestore.googleapis.com",), "database", _FIRESTORE),
    ("firebase", ("*.firebaseio.com", "firebase.googleapis.com"), "database", {}),
    ("google_storage", ("storage.googleapis.com", "*.storage.googleapis.com"), "storage", _STORAGE),
    ("google_drive", ("www.googleapis.com/drive", "drive.googleapis.com"), "storage", {}),
    ("google_calendar", ("www.googleapis.com/calendar", "calendar-json.googleapis.com"), "productivity", {}),
    ("google_maps", ("maps.googleapis.com",), "maps", {"GET /maps/api/geocode/json": "geocode"}),
    ("google", ("*.googleapis.com",), "cloud", {}),
    ("s3", ("s3.amazonaws.com", "*.s3.amazonaws.com", "s3.*.amazonaws.com", "*.s3.*.amazonaws.com"), "storage", {}),
    ("sqs", ("sqs.*.amazonaws.com",), "queue", {}),
    ("sns", ("sns.*.amazonaws.com",), "notifications", {}),
    ("ses", ("email.*.amazonaws.com",), "email", {}),
    ("dynamodb", ("dynamodb.*.amazonaws.com",), "database", {}),
    ("lambda", ("lambda.*.amazonaws.com",), "cloud", {}),
    ("bedrock", ("bedrock-runtime.*.amazonaws.com",), "ai", {}),
    ("aws", ("*.amazonaws.com",), "cloud", {}),
    ("azure_storage", ("*.blob.core.windows.net",), "storage", {}),
    ("sentry", ("*.sentry.io", "sentry.io"), "monitoring", {}),
    ("datadog", ("*.datadoghq.com", "*.datadoghq.eu"), "monitoring", {}),
    ("algolia", ("*.algolia.net", "*.algolianet.com"), "search", {}),
    ("hubspot", ("api.hubapi.com",), "crm", {}),
    ("shopify", ("*.myshopify.com",), "commerce", {}),
)
